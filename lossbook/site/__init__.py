"""The workshop around the book: its environment, generated pages, offline copy, notebook lint and chapter template."""
