"""What follows a run or a sweep's winner: steps that are settled when they are sent, as jobs of Slurm or here."""
