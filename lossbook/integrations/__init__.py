"""Models of other libraries with the kernels of this package inside; each subpackage is named for its library."""
