"""How costs grow: the same over a cluster, and over a catalog, of a sixteenth to the whole size."""

import os
import shutil
import statistics
import subprocess
from math import log

import catalog
from cluster import PROGRAMS, Cluster, Pgkeep
from measure import Measured, run

PARTS_OF_ALL = (16, 8, 4, 2, 1)


class Growth:
    def __init__(self, options, program, home, plot):
        self.options, self.program, self.home, self.plot = options, program, home, plot
        self.cluster = None
        # By name: what it grows with, and seconds by size.
        self.costs = {}

    def end(self):
        if self.cluster:
            self.cluster.stop()

    def add(self, name, size, commands):
        """The fastest of several: what disturbs a run only makes it longer."""
        wall = []
        for command in commands:
            os.sync()
            wall.append(Measured(command, watch=False).wall)
        self.costs.setdefault(name, []).append((size, min(wall)))
        print(f"{name:24} {size:>8} {min(wall):8.3f} s", flush=True)

    def measure_all(self):
        for part, made in zip(PARTS_OF_ALL, self.options.catalogs):
            self.of_catalog(500 // part, made)
        for part in PARTS_OF_ALL:
            self.of_cluster(self.options.scale / part)
        self.fit()
        self.draw()

    def of_catalog(self, backups, made):
        rounds = range(self.options.rounds)
        place = f"{self.home}/catalog"
        ours = catalog.of_pgkeep(self.program, made, place, 1)
        self.add("info", backups, [ours + ["info"] for _ in rounds])

        def expiries():
            for _ in rounds:
                yield catalog.of_pgkeep(self.program, made, place, 1) + ["expire"]

        self.add("expire", backups, expiries())
        shutil.rmtree(place)

    def of_cluster(self, scale):
        cluster = self.cluster = Cluster(self.home, "main", PROGRAMS)
        tool = Pgkeep(self.program, cluster, self.options.level)
        cluster.start()
        tool.set_up()
        cluster.archive_with([tool.archive_command()])
        cluster.reload()
        tool.check()
        cluster.fill(scale)
        size = cluster.size()
        rounds = range(self.options.rounds)
        self.add("backup", size, [tool.backup("full") for _ in rounds])
        newest = sorted(os.listdir(tool.backups))[-1]
        for name in sorted(os.listdir(tool.backups))[:-1]:
            run(tool.command + ["delete", name])
        self.add("verify", size, [tool.command + ["verify", "--level", "full", "--backup", newest] for _ in rounds])

        def restores():
            for _ in rounds:
                shutil.rmtree(f"{self.home}/restored", ignore_errors=True)
                os.mkdir(f"{self.home}/restored", 0o700)
                yield tool.restore(f"{self.home}/restored")

        self.add("restore", size, restores())
        cluster.stop()
        self.cluster = None
        shutil.rmtree(cluster.home)

    def fit(self):
        """The power of the size that the time goes with: 1 is linear, less is what costs at any size."""
        for name, points in self.costs.items():
            x, y = [log(size) for size, _ in points], [log(wall) for _, wall in points]
            print(f"{name:24} grows with the size to the power of {statistics.linear_regression(x, y).slope:.2f}")

    def draw(self):
        lines = "\n".join(
            f"${name} << END\n" + "\n".join(f"{size} {wall}" for size, wall in points) + "\nEND"
            for name, points in self.costs.items()
        )
        one = lambda names: ", ".join(f"${name} with linespoints title '{name}'" for name in names)
        biggest, slowest = max(self.costs["backup"])[0], max(wall for _, wall in self.costs["backup"])
        most, longest = max(self.costs["expire"])[0], max(wall for _, wall in self.costs["expire"])
        script = f"""{lines}
set terminal svg size 900,360 font 'sans-serif,12' background 'white'
set output '{self.plot}'
set logscale xy 2
set key left top
set ylabel 'seconds'
set multiplot layout 1,2
set xlabel 'MiB in the cluster'
plot {one(['backup', 'restore', 'verify'])}, x * {slowest / biggest} with lines dashtype 2 linecolor 'gray' title 'linear'
set xlabel 'backups, with 20 segments each'
plot {one(['info', 'expire'])}, x * {longest / most} with lines dashtype 2 linecolor 'gray' title 'linear'
"""
        subprocess.run(["gnuplot"], input=script, text=True, check=True)
