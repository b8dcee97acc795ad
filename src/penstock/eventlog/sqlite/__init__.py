"""The log in a file.

log       `SqliteLog`: leases, flushes, what others did
store     the file: every statement, in its transaction (schema.sql)
stream    streams produced here, and those of others
presence  whether a process lives
"""
