"""The fenced blocks of a page of the manual."""
import collections

# The heading above it, its line, what stands behind the opening fence, the HTML comment right before it, and its text.
Block = collections.namedtuple("Block", "heading line language marker code")


def blocks(text):
    """All blocks of a page, from top to bottom."""
    heading, marker, found, fence = "", None, [], None
    for number, line in enumerate(text.splitlines(), 1):
        if fence is not None:
            if line == "```":
                found.append(Block(heading, *fence[:2], marker, "\n".join(fence[2]) + "\n"))
                fence, marker = None, None
            else:
                fence[2].append(line)
        elif line.startswith("```"):
            fence = (number, line[3:], [])
        elif line.startswith("<!--"):
            marker = line
        elif line.strip():
            marker = None
            if line.startswith("#"):
                heading = line.lstrip("#").strip()
    return found
