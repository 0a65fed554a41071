"""How good detections are: VOC's and COCO's metrics over a data set, and detections on disk."""
