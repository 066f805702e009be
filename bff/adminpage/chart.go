package adminpage

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// chart is a small chart of the last hour, one value a minute.
type chart struct {
	Title  string
	Label  string // for those who do not see the chart
	Top    string // the value at the upper edge; empty: there is none
	Series []series
	Line   bool // lines instead of bars
}

// series is one line, or one part of the bars. Path is that of an SVG.
type series struct {
	Name, Class, Figure, Path string
}

// Size of a chart in units of its own. It is stretched to the page.
const (
	minuteWidth = 4
	height      = 48
)

// charts returns the charts of the last hour.
func charts(minutes []Minute) []chart {
	return []chart{
		bars("Sign-ins", minutes,
			part{"completed", "good", func(m Minute) uint64 { return m.SignIns }},
			part{"refused", "bad", func(m Minute) uint64 { return m.RefusedSignIns }}),
		bars("Token refreshes", minutes,
			part{"successful", "good", func(m Minute) uint64 { return m.Refreshes }},
			part{"failed", "bad", func(m Minute) uint64 { return m.FailedRefreshes }}),
		bars("Error responses", minutes,
			part{"4xx", "warn", func(m Minute) uint64 { return m.ClientErrors }},
			part{"5xx", "bad", func(m Minute) uint64 { return m.ServerErrors }}),
		latency(minutes),
	}
}

// part is one part of the bars of a chart.
type part struct {
	name, class string
	count       func(Minute) uint64
}

// bars returns a chart of counts. The first part is at the bottom.
func bars(title string, minutes []Minute, parts ...part) chart {
	sums := make([]uint64, len(minutes))
	for i, m := range minutes {
		for _, p := range parts {
			sums[i] += p.count(m)
		}
	}
	top := niceCount(slices.Max(append(sums, 1)))
	c := chart{Title: title}
	if slices.Max(append(sums, 0)) > 0 {
		c.Top = grouped(top) + "/min"
	}
	below := make([]float64, len(minutes))
	var figures []string
	for _, p := range parts {
		var total uint64
		var path strings.Builder
		for i, m := range minutes {
			n := p.count(m)
			if n == 0 {
				continue
			}
			total += n
			tall := max(float64(n)/float64(top)*height, 1) // one among thousands is visible
			fmt.Fprintf(&path, "M%d %.1fv-%.1fh%dv%.1fz", i*minuteWidth, height-below[i], tall, minuteWidth-1, tall)
			below[i] += tall
		}
		c.Series = append(c.Series, series{p.name, p.class, grouped(total), path.String()})
		figures = append(figures, grouped(total)+" "+p.name)
	}
	c.Label = fmt.Sprintf("%s in the last hour: %s", title, strings.Join(figures, ", "))
	return c
}

// latency returns the chart of the time to serve requests of routes.
func latency(minutes []Minute) chart {
	c := chart{Title: "Response time of routes", Line: true}
	var top time.Duration
	for _, m := range minutes {
		top = max(top, m.P95, m.Median)
	}
	if top > 0 {
		top = niceDuration(top)
		c.Top = duration(top)
	}
	var figures []string
	for _, line := range []struct {
		name, class string
		value       func(Minute) time.Duration
	}{
		{"median", "good", func(m Minute) time.Duration { return m.Median }},
		{"p95", "warn", func(m Minute) time.Duration { return m.P95 }},
	} {
		var path strings.Builder
		var latest time.Duration
		drawing := false
		for i, m := range minutes {
			d := line.value(m)
			if d == 0 {
				drawing = false
				continue
			}
			latest = d
			y := height - float64(d)/float64(top)*height
			if drawing {
				fmt.Fprintf(&path, "V%.1f", y)
			} else {
				fmt.Fprintf(&path, "M%d %.1f", i*minuteWidth, y)
			}
			fmt.Fprintf(&path, "h%d", minuteWidth)
			drawing = true
		}
		c.Series = append(c.Series, series{line.name, line.class, duration(latest), path.String()})
		figures = append(figures, line.name+" "+duration(latest))
	}
	c.Label = c.Title + " in the last minute with requests: " + strings.Join(figures, ", ")
	return c
}

// niceCount returns 1, 2 or 5 times a power of ten that is at least n.
func niceCount(n uint64) uint64 {
	for power := uint64(1); ; power *= 10 {
		for _, digit := range []uint64{1, 2, 5} {
			if digit*power >= n {
				return digit * power
			}
		}
		if power > 1<<60 {
			return n
		}
	}
}

// niceDuration is niceCount in milliseconds.
func niceDuration(d time.Duration) time.Duration {
	return time.Duration(niceCount(uint64((d+time.Millisecond-1)/time.Millisecond))) * time.Millisecond
}
