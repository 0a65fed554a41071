"""Train region-based object detectors with online hard example mining (Shrivastava et al., CVPR 2016)."""
