"""What a person looks at: pages about runs and about annotations, each one file that opens from disk."""
