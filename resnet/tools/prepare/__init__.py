"""`resnet prepare`: images of any source into shards."""
