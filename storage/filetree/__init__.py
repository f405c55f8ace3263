"""The files of an image, as its layers stacked by a union mount show them."""
