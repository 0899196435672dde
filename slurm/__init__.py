"""What a cluster is: profiles, sbatch parameters, the job, requeue rules, and a Slurm to test on."""
