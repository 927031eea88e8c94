"""A whole merge: all of it, one part of several, or a dry run; and the manifest and report it leaves."""
