"""Reports: from run directories to rows, a text table for the terminal, and one self-contained HTML page.

`page.write_report` makes the page, `tables.read_runs` and `tables.text_table` serve the terminal.
"""
