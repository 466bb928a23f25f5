"""What a decode worker runs its searches on: level by level on a CPU, cohort by cohort on a GPU."""
