"""What `--help` says after `ltexp data` and after each of its commands."""

USAGE = """\
ltexp data: prepare, unpack, check and show datasets.

usage: ltexp data COMMAND ...

{commands}

ltexp data COMMAND --help says more.
"""

PREPARE = """\
Makes <root>/<dataset>/{train,test}_{images,labels}.npy and classes.txt, in the published order of the images;
of AG's News, <root>/ag_news/{train,test}.csv, the dataset's own files, once every line of them is found in order.

  ltexp data prepare cifar100                      from what the data root holds, else by download
  ltexp data prepare cifar100 source=~/Downloads   from cifar-100-python.tar.gz or cifar-100-binary.tar.gz,
                                                   one of them unpacked, or prepared arrays

  ltexp data prepare ag_news source=~/Downloads    from ag_news_csv.tgz, or train.csv and test.csv
  ltexp data prepare svhn                          from train_32x32.mat and test_32x32.mat, else by download
  ltexp data prepare cinic10 source=~/Downloads    from CINIC-10.tar.gz, or its folder
  ltexp data prepare tiny_imagenet source=~/Downloads      from tiny-imagenet-200.zip, or its folder

datasets: cifar10, cifar100, svhn; never by download cinic10, tiny_imagenet, ag_news

keys:
  source=PATH           archive, folder of an unpacked one, folder of prepared files, or a folder with one of these
  root=PATH             data root (default: the environment variable LTEXP_DATA, else data)
  download=true|false   true: download anew; false: never (default: only if there is nothing to prepare from)
"""

UNPACK = """\
Makes <root>/NAME/ with the images of a folder of Hugging Face datasets as they are stored, a list for each split
and classes.txt, which dataset=image_list reads; needs pip install "ltexp[datasets]", and no network.

  ltexp data unpack beans source=~/Downloads/beans             as it is downloaded, or as save_to_disk wrote it
  ltexp data unpack birds source=birds_hf label=species train=train_full validation=none

keys:
  source=FOLDER     with Parquet, Arrow or image files
  image=COLUMN      of the images (default: the one of that kind)
  label=COLUMN      of their classes (default: the one of that kind, else label); text and numbers are classes too
  train=SPLIT, validation=SPLIT, test=SPLIT      its name in the source, or none (default: as usually called)
  root=PATH         data root (default: the environment variable LTEXP_DATA, else data)
"""

CHECK = """\
Says exactly what is missing or wrong with each dataset's files; exits with 1 if anything is.

  ltexp data check                      every dataset
  ltexp data check cifar10 cifar100_lt
  ltexp data check imagenet_lt                         lists, counts, and that each image file exists
  ltexp data check imagenet_lt decode=true             and that each can be decoded, on all cores
  ltexp data check image_folder source.folder=PATH

The prepared form of a dataset of small images is a folder of the data root with
  train_images.npy, test_images.npy   uint8 (N, H, W, 3), RGB
  train_labels.npy, test_labels.npy   int64 (N,), from 0
  classes.txt                         one name a line, in label order
and of texts a folder with train.csv and test.csv: class index from 1, then the fields of text.
Image files lie in a folder for each class, or are named by lists of "path label" lines.

datasets: {datasets}

keys:
  root=PATH         data root (default: the environment variable LTEXP_DATA, else data)
  decode=true       decode image files as well
  unreadable=FILE   write the paths of missing and, with decode=true, damaged images of one dataset there; a run
                    with dataset.leave_out=FILE goes on without them. It is not written where no image was looked at

Of one dataset also every key that `ltexp methods dataset/DATASET` shows (leave_out= or dataset.leave_out=). With any
that does not begin with source. it says how many images a run takes, or why it takes none.
"""

SHOW = """\
Prints a long-tailed dataset's sizes, class counts, ratio and shots, and draws its class frequencies.

  ltexp data show cifar100_lt
  ltexp data show cifar10_lt imbalance=step imbalance_ratio=50 subset.seed=1 out=step.pdf

datasets: {datasets}

keys:
  root=PATH   data root (default: the environment variable LTEXP_DATA, else data)
  out=PATH    the figure, .png, .pdf or .svg (default: outputs/data/<dataset>_<imbalance>_<ratio>.png)

Also every key that `ltexp methods dataset/DATASET` shows, such as imbalance_ratio= (or dataset.imbalance_ratio=),
max_per_class=, num_classes=, subset.seed=, validation.fraction=.
"""

CACHE = """\
Makes a copy of all images of a dataset of files, resized to dataset.resize pixels on the short side as evaluation does,
so that training decodes small images instead of large ones. A run reads it with dataset.cache=FOLDER.

  ltexp data cache imagenet_lt
  ltexp data cache image_folder source.folder=~/birds out=~/birds_256 workers=8

A smaller JPEG is kept as it is, everything else becomes a JPEG of quality 95, which changes a pixel by two of 255
on average. The command can be stopped at any time, and goes on where it was when it is given again. A cache that is not
finished, damaged, of other lists or of another size is refused by every run.

datasets: {datasets}

keys:
  root=PATH   data root (default: the environment variable LTEXP_DATA, else data)
  out=PATH    folder of the cache (default: ROOT/cache/DATASET_RESIZE)
  workers=N   processes that decode (default: one for each core)

Also every key that `ltexp methods dataset/DATASET` shows, such as resize= (or dataset.resize=).
"""
