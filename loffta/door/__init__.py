"""What `import loffta` gives: a file per function, which checks its arguments, calls one driver, hands on its result.

Every function runs in a `borrowed` process, prints nothing on stdout, and may be called from any thread. The commands
call the same functions, or the same drivers where a configuration file has its say.
"""
