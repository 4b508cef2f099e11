"""ImageNet and its subsets from folders of images: root/train/CLASS/*.JPEG and root/val/CLASS/*.JPEG."""
