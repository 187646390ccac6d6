# SPDX-License-Identifier: GPL-2.0-or-later
"""Two charts, as SVG in BUILD/bench: latency by the number of running qubes, and throughput by the size
of the written pieces."""

import math
import os
from xml.sax.saxutils import escape

from houses import House
from rows import BUILD, args, failures_row, launch, row

COLOURS = ("#0b5fa5", "#c2571a", "#3a7d34")
WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 84, 60  # around the plot


class Axis:
    """Positions on a linear or a logarithmic scale between `low` and `high`."""

    def __init__(self, low, high, begin, end, logarithmic):
        self.scale = math.log if logarithmic else float
        self.low, self.high, self.begin, self.end = low, high, begin, end

    def at(self, value):
        share = (self.scale(value) - self.scale(self.low)) / (self.scale(self.high) - self.scale(self.low))
        return self.begin + share * (self.end - self.begin)


def steps_to(most):
    """0 and round numbers, up to the first that is not less than `most`."""
    raw = most / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= raw)
    return [n * step for n in range(math.ceil(most / step) + 1)]


def powers_around(least, most):
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    return [10.0 ** n for n in range(low, high + 1)]


def chart(path, title, note, x_title, y_title, x_ticks, series, y_logarithmic=False):
    """`x_ticks` are pairs of value and text; `series` is a list of names, each with pairs of x and y."""
    values = [y for _, points in series for _, y in points]
    y_ticks = powers_around(min(values), max(values)) if y_logarithmic else steps_to(max(values))
    x = Axis(x_ticks[0][0], x_ticks[-1][0], LEFT, WIDTH - RIGHT, True)
    y = Axis(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP, y_logarithmic)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
           f'height="{HEIGHT}" font-family="sans-serif" font-size="13" fill="#222">',
           f'<title>{escape(title)}</title>',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']

    def text(at_x, at_y, words, anchor="middle", more=""):
        out.append(f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>')

    def line(x1, y1, x2, y2, colour):
        out.append(f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}"/>')

    text(LEFT, 24, title, "start", ' font-size="16" font-weight="bold"')
    text(LEFT, 44, note, "start", ' fill="#666"')
    for value in y_ticks:
        line(LEFT, y.at(value), WIDTH - RIGHT, y.at(value), "#ddd")
        text(LEFT - 8, y.at(value) + 4, f"{value:g}", "end")
    for value, word in x_ticks:
        line(x.at(value), HEIGHT - BOTTOM, x.at(value), HEIGHT - BOTTOM + 5, "#222")
        text(x.at(value), HEIGHT - BOTTOM + 20, word)
    line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "#222")
    text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_title)
    middle = (TOP + HEIGHT - BOTTOM) / 2
    text(20, middle, y_title, more=f' transform="rotate(-90 20 {middle})"')
    key = LEFT
    for colour, (name, points) in zip(COLOURS, series):
        places = [(x.at(at), y.at(value)) for at, value in points]
        out.append(f'<path d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in places)}" fill="none" '
                   f'stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in places]
        out.append(f'<rect x="{key}" y="56" width="14" height="4" fill="{colour}"/>')
        text(key + 20, 63, name, "start")
        key += 40 + 7.2 * len(name)
    out.append("</svg>")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write("\n".join(out) + "\n")


def place(name):
    return os.path.join(BUILD, "bench", name + ".svg")


def latency(state):
    numbers = [2 ** n for n in range(8)]
    qubes = [f"c{n}" for n in range(numbers[-1])]
    house = House(state.programs, "charts", qubes)
    for qube in qubes:
        house.machine.set_state(qube, "Halted")
    house.qubes = []  # otherwise the start would wait for all
    per_step = 64 if args.quick else 192
    median, slowest, bash = [], [], []
    with house:
        begun = 0
        for number in numbers:
            for qube in qubes[begun:number]:
                house.machine.set_state(qube, "Running")
            for qube in qubes[begun:number]:
                house.wait_for_agent(qube)
            begun = number
            turns = [word for n in range(min(number, 32)) for word in
                     ("--", *house.client(qubes[n * number // min(number, 32)], "true"))]
            done = launch("--samples", "--count", max(1, per_step // min(number, 32)), "--warmup", 1,
                          "--", "bash", "-c", "true", *turns, env=house.env())
            failures_row(done)
            times = sorted(t for r in done["rows"][1:] for t in r["samples_us"])
            median.append((number, times[len(times) // 2] / 1000))
            slowest.append((number, times[int(len(times) * 0.95)] / 1000))
            bash.append((number, done["rows"][0]["median_us"] / 1000))
    chart(place("latency"), "qvm-remote true against the number of running qubes",
          "whole process, over qvm-run; one after the other, from the qubes in turn", "running qubes",
          "milliseconds", [(n, str(n)) for n in numbers],
          [("median", median), ("95 of 100 are faster", slowest), ("bash -c true", bash)])
    row("qvm-remote true with 128 qubes running / with one", median[-1][1] / median[0][1], "×",
        note=f"{median[-1][1]:.2f} ms / {median[0][1]:.2f} ms; bench/latency.svg")


def throughput(state):
    words = {64: "64 B", 256: "256 B", 1024: "1 KiB", 4096: "4 KiB", 16384: "16 KiB", 65536: "64 KiB",
             262144: "256 KiB", 1048576: "1 MiB"}
    ours, into, alone = [], [], []
    with House(state.programs, "chunks", ["work"]) as house:
        for chunk in words:
            count = min((32 if args.quick else 128) << 20, chunk * 150_000) // chunk
            dd = ["dd", "if=/dev/zero", f"bs={chunk}", f"count={count}", "status=none"]
            done = launch("--count", 3, "--", *house.client("work", " ".join(dd)), "|", "cat",
                          "--", *dd, "|", *house.client("work", "cat >/dev/null"),
                          "--", *dd, "|", "cat", env=house.env())
            failures_row(done)
            for points, result in zip((ours, into, alone), done["rows"]):
                points.append((chunk, chunk * count / result["median_us"]))
    chart(place("throughput"), "Throughput against the size of the pieces that are written",
          "dd writes them; in dom0 for stdout, in the qube for stdin; over qvm-run", "size of a piece",
          "MB/s", list(words.items()),
          [("stdout", ours), ("stdin", into), ("a pipe alone", alone)], y_logarithmic=True)
    row("64 KiB pieces of stdout / of 64 bytes", dict(ours)[65536] / dict(ours)[64], "×",
        note=f"{dict(ours)[65536]:.0f} / {dict(ours)[64]:.0f} MB/s; bench/throughput.svg")


def bench_charts(state):
    latency(state)
    throughput(state)
