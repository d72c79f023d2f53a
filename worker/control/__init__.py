"""Commands of operators: who is obeyed, what each does, and the way from arrival to answer."""
