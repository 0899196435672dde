"""What a training run is: the typed schema, its YAML files, and how they are loaded. Imports no torch."""
