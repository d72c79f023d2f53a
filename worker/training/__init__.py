"""Trainings: the state machine of runs, the child process, the triggers' timer, training-data export."""
