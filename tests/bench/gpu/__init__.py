"""What this program gives on a GPU, stage by stage: python -m tests.bench.gpu --out FOLDER."""
