"""Images in files: lists and folders, decoding, crops, the cache of small copies."""
