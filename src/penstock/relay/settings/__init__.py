"""What is configured.

policy      what is decided for the requests of one route; with match, rules and cors, its parts
config      the whole, read from a TOML file and checked
document    the file with its lines, for mistakes that can be found; toml_lines finds them
keys        every key, and how its value is read; units has the durations and sizes
store       where streams are kept, as a URL names it
"""
