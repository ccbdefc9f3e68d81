"""What was measured, as a table on the terminal and in Markdown."""

import statistics

HEAD = ["", "wall s", "spread", "ratio", "CPU s", "CPU of the machine", "peak MiB", "stored MiB", "requests on S3"]


class Table:
    """Rows by name, and in each what was measured of each tool. `other` is the tool that the ratios are to."""

    def __init__(self, other):
        self.other, self.rows, self.of = other, {}, {}

    def add(self, row, tool, measured):
        self.rows.setdefault(row, {}).setdefault(tool, []).append(measured)

    def turn(self, row, tools):
        """The order in which tools have their turn next: another one each time."""
        done = len(next(iter(self.rows.get(row, {}).values()), []))
        names = list(tools)
        return names[done % len(names):] + names[: done % len(names)]

    def compare(self, row, with_row):
        """The ratios of a row are to the other tool in another row."""
        self.of[row] = with_row

    def cells(self):
        lines = [HEAD]
        for row, tools in self.rows.items():
            other = walls(self.rows.get(self.of.get(row, row), {}).get(self.other, []))
            for tool, runs in tools.items():
                wall = walls(runs)
                timed = [one for one in runs if one.wall]
                seen = lambda name, runs: [getattr(one, name) for one in runs if getattr(one, name) is not None]
                peak = max(one.peak for one in runs)
                lines.append([
                    f"{row}: {tool}", seconds(wall), f"{seconds(wall[:1])} to {seconds(wall[-1:])}" if wall else "",
                    f"{statistics.median(wall) / statistics.median(other):.2f}" if wall and other else "",
                    seconds(seen("cpu", timed)), seconds(seen("machine", timed)), f"{peak:.0f}" if peak else "",
                    middle(seen("stored", runs), 1), middle(seen("requests", runs), 0),
                ])
        return lines

    def show(self):
        lines = self.cells()
        widths = [max(len(line[n]) for line in lines) for n in range(len(HEAD))]
        for line in lines:
            print("  ".join(cell.ljust(width) if n == 0 else cell.rjust(width)
                            for n, (cell, width) in enumerate(zip(line, widths))))

    def markdown(self):
        lines = ["| " + " | ".join(line) + " |\n" for line in self.cells()]
        return "".join([lines[0], "|---" + "|--:" * (len(HEAD) - 1) + "|\n", *lines[1:]])


def walls(runs):
    """How long those took that were timed, in order."""
    return sorted(one.wall for one in runs if one.wall)


def middle(values, digits):
    return f"{statistics.median(values):.{digits}f}" if values else ""


def seconds(values):
    return middle(values, 3 if values and statistics.median(values) < 1 else 2)
