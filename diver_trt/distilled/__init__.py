"""Reading distilled datasets.

Three numbers name a class and are never mixed up here. Its *index* is its position in the dataset's
own class order (folder `00003`). Its *label* is the model's class (0 to 999 for ImageNet-1K). Its
*wnid* is ImageNet's name for it (`n07747607`). Methods list the classes of a subset in orders of
their own, so index order and sorted wnid order differ: for ImageWoof in all ten places.
"""
