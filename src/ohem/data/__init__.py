"""Data sets: annotated images in VOC or COCO form, checked before use."""
