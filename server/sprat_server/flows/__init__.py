"""What takes several features at once: publishing, rollouts, enrolment, and the tasks of the worker."""
