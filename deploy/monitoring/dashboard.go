package main

import (
	"bytes"
	"encoding/json"
	"strings"
)

// A row is a line of panels under a heading.
type row struct {
	title  string
	panels []panel
}

// A panel is a picture of one or more queries.
type panel struct {
	title, description string

	kind  string // timeseries if empty
	width int    // of 24
	unit  string // by Grafana's name
	max   float64
	stack bool
	bars  bool

	limits  []limit
	queries []query
}

// A query is an expression and the name of the lines it makes.
type query struct{ expr, legend string }

// A limit is a value and the colour from there on. The first holds from the
// beginning, whatever its value.
type limit struct {
	color string
	from  float64
}

const (
	stat       = "stat"
	timeseries = "timeseries"

	unitCount     = "short"
	unitPerSecond = "cps"

	// memoryLegend begins the names of lines that have an axis of their own.
	memoryLegend = "memory"

	columns    = 24
	statHeight = 4
	height     = 8
)

// object is one of JSON. encoding/json sorts its keys, so that what is generated
// stays the same.
type object = map[string]any

// dashboard is Grafana's model of one, as version 10 and later read it.
type dashboard object

// source is whatever Prometheus is chosen in the variable at the top.
var source = object{"type": "prometheus", "uid": "${datasource}"}

func newDashboard(rows []row) dashboard {
	var panels []object
	y := 0
	add := func(p object, x, width, height int) {
		p["id"] = len(panels) + 1
		p["gridPos"] = object{"x": x, "y": y, "w": width, "h": height}
		panels = append(panels, p)
	}
	for _, r := range rows {
		add(object{"type": "row", "title": r.title, "collapsed": false, "panels": []object{}}, 0, columns, 1)
		y++
		x, tallest := 0, 0
		for _, p := range r.panels {
			h := height
			if p.kind == stat {
				h = statHeight
			}
			add(p.object(), x, p.width, h)
			x, tallest = x+p.width, max(tallest, h)
		}
		y += tallest
	}
	return dashboard{
		"uid":           "trackless",
		"title":         "Trackless",
		"description":   "What DNS does not cost the connection tracking tables, and how the nodes' caches are.",
		"tags":          []string{"dns", "conntrack", "trackless"},
		"schemaVersion": 39,
		"editable":      true,
		"graphTooltip":  1, // one crosshair for all
		"refresh":       "30s",
		"time":          object{"from": "now-1h", "to": "now"},
		"timezone":      "",
		"links": []object{{
			"type": "link", "title": "Runbooks", "icon": "doc", "targetBlank": true,
			"url": "https://github.com/trackless-dns/trackless/tree/main/docs/runbooks",
		}},
		"templating": object{"list": []object{
			{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
			{
				// Without a value for all of them of its own, Grafana names each: the
				// cluster's CoreDNS has many of the metrics as well.
				"name": "instance", "label": "Node", "type": "query", "datasource": source,
				"query":   object{"query": "label_values(coredns_trackless_build_info, instance)", "refId": "instance"},
				"refresh": 2, "sort": 1, "multi": true, "includeAll": true,
				"current": object{"text": "All", "value": "$__all"},
			},
		}},
		"annotations": object{"list": []object{}},
		"panels":      panels,
	}
}

func (p panel) object() object {
	defaults := object{"unit": p.unit, "min": 0, "custom": object{}}
	if p.max > 0 {
		defaults["max"] = p.max
	}
	if len(p.limits) > 0 {
		steps := make([]object, len(p.limits))
		for i, l := range p.limits {
			steps[i] = object{"color": l.color, "value": l.from}
		}
		steps[0]["value"] = nil
		defaults["thresholds"] = object{"mode": "absolute", "steps": steps}
	}
	out := object{
		"type": timeseries, "title": p.title, "description": p.description,
		"datasource": source, "targets": p.targets(),
		"options": object{
			"legend":  object{"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []string{}},
			"tooltip": object{"mode": "multi", "sort": "desc"},
		},
	}
	overrides := []object{}
	if p.kind == stat {
		out["type"] = stat
		out["options"] = object{
			"reduceOptions": object{"calcs": []string{"lastNotNull"}, "fields": "", "values": false},
			"colorMode":     "value", "graphMode": "area", "justifyMode": "auto", "textMode": "auto", "orientation": "auto",
		}
	} else {
		defaults["custom"], overrides = p.custom(), p.overrides()
	}
	out["fieldConfig"] = object{"defaults": defaults, "overrides": overrides}
	return out
}

func (p panel) targets() []object {
	var targets []object
	for i, q := range p.queries {
		targets = append(targets, object{
			"refId": string(rune('A' + i)), "datasource": source,
			"expr": q.expr, "legendFormat": q.legend,
		})
	}
	return targets
}

// custom are the settings of a time series' lines.
func (p panel) custom() object {
	custom := object{"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": false}
	if p.bars {
		custom["drawStyle"], custom["fillOpacity"] = "bars", 80
	}
	if p.stack {
		custom["stacking"], custom["fillOpacity"] = object{"mode": "normal", "group": "A"}, 40
	}
	if len(p.limits) > 0 {
		custom["thresholdsStyle"] = object{"mode": "dashed"}
	}
	return custom
}

// overrides gives memory an axis of its own.
func (p panel) overrides() []object {
	for _, q := range p.queries {
		if strings.HasPrefix(q.legend, memoryLegend) {
			return []object{{
				"matcher": object{"id": "byRegexp", "options": "/^" + memoryLegend + "/"},
				"properties": []object{
					{"id": "unit", "value": "bytes"},
					{"id": "custom.axisPlacement", "value": "right"},
				},
			}}
		}
	}
	return []object{}
}

// json is the dashboard as Grafana imports it.
func (d dashboard) json() ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	err := encoder.Encode(d)
	return b.Bytes(), err
}
