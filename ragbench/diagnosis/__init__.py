"""What fails, how sure that is, what to do about it and what that costs."""
