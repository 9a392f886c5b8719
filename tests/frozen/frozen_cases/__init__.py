"""The cases of `tests/frozen/make.py`: how each file and each unfinished run was made, and how it is read back."""
