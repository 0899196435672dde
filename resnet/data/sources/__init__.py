"""Where images come from; `registry` lists the sources."""
