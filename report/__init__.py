"""Every page that a person looks at: one file each, without scripts."""
