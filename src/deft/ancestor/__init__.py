"""Everything for the commands of the project that deft began from: flags, data mixes, their parser."""
