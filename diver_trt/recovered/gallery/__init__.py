"""A page that shows every distilled image beside its recovered one, `index.html`.

It is a view of a finished dataset, and written after the manifest: trainers do not need it, and
neither the manifest nor a later recovery depends on it. Everything it needs lies in the output
folder. The recovered images are the dataset's own files. The distilled ones may be rows of a tensor
or lie on another drive, so they are kept as thumbnails on sheets of a hundred, `gallery_00000.jpg`
and so on. These lie beside the page and not in a folder of their own, since torchvision's
ImageFolder would take every folder for a class.

The same dataset gives the same bytes: the page does not contain a time, the name of a machine, or a
path but that of a class map as it was given, and the command on it names neither folders nor the
bundle.
"""
