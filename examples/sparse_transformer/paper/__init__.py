"""The paper made again: which commands that takes at a scale (scales, steps), and one page of what they gave.

results     what a run's folder holds, read
quality speed context lengths memory samples figures yardsticks runs_table     a section of the page each
page, html  the sections one after the other, as Markdown and as one file
"""
