"""``python -m lossbook`` is the ``lossbook`` command."""

from lossbook.cli import main

if __name__ == "__main__":
    main()
