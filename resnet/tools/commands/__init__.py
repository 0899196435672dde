"""What `resnet` can be told to do: a verb a file. Nobody imports them but `resnet.tools.cli`."""
