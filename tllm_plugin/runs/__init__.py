"""What a run leaves behind: its folder, the files in it, atomic writing, and reading that trusts nothing."""
