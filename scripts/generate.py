#!/usr/bin/env python3
"""Writes what is generated from one place: the Grafana dashboards and the rules of the Prometheus operator.

    python3 scripts/generate.py           writes the files
    python3 scripts/generate.py --check   says which files differ, and ends with 1 if any does

Nothing but Python's own library. A panel is one line below: title, what it shows, unit, expressions.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What every expression is restricted to.
ALL = 'job=~"$job",instance=~"$instance"'
RATE = "[$__rate_interval]"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Status codes that are the service's doing; the rules in prometheus/rules/slo.yml name the same.
FAULTS = "Unknown|DeadlineExceeded|ResourceExhausted|Internal|Unavailable|DataLoss"
OWN = 'grpc_service!~"grpc[.].*"'


# ---- expressions ----------------------------------------------------------------------------------------------------

def series(name, *labels):
    """A selector of `name` for the chosen instances."""
    return f"{name}{{{','.join((ALL, *labels))}}}"


def rate(name, *labels):
    return f"rate({series(name, *labels)}{RATE})"


def total(expression, *by):
    return f"sum by ({', '.join(by)}) ({expression})" if by else f"sum({expression})"


def quantile(share, name, *by):
    return f"histogram_quantile({share}, {total(rate(name + '_bucket'), 'le', *by)})"


def quantiles(name, *shares):
    """Expressions and legends of several quantiles."""
    return [(quantile(share, name), f"p{100 * share:g}") for share in shares]


def mean(name):
    return f"{total(rate(name + '_sum'))} / {total(rate(name + '_count'))}"


# ---- panels ---------------------------------------------------------------------------------------------------------

def targets(expressions, instant=False, form="time_series"):
    return [
        {
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": expression,
            "format": form,
            "instant": instant,
            "legendFormat": legend,
            "range": not instant,
            "refId": chr(ord("A") + at),
        }
        for at, (expression, legend) in enumerate(expressions)
    ]


def panel(kind, title, about, unit, expressions, width, height, defaults, options, **target):
    return {
        "datasource": SOURCE,
        "description": about,
        "fieldConfig": {"defaults": {"unit": unit, **defaults}, "overrides": []},
        "gridPos": {"w": width, "h": height},
        "options": options,
        "targets": targets(expressions, **target),
        "title": title,
        "type": kind,
    }


def steps(*pairs):
    """Colours from values on; the first applies from the beginning."""
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in pairs]}


def graph(title, about, unit, *expressions, width=8, stacked=False, soft_max=None, links=()):
    """Curves over time."""
    custom = {
        "drawStyle": "line",
        "fillOpacity": 30 if stacked else 8,
        "lineWidth": 1,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
    }
    if soft_max is not None:
        custom["axisSoftMax"] = soft_max
    defaults = {"color": {"mode": "palette-classic"}, "custom": custom, "links": list(links), "min": 0}
    options = {
        "legend": {"calcs": ["lastNotNull", "max"], "displayMode": "table", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel("timeseries", title, about, unit, expressions, width, 8, defaults, options)


def stat(title, about, unit, expression, thresholds=None, decimals=None, width=4):
    """One figure."""
    defaults = {"thresholds": thresholds or steps(("blue", None))}
    if decimals is not None:
        defaults["decimals"] = decimals
    options = {
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "value",
    }
    return panel("stat", title, about, unit, [(expression, "")], width, 4, defaults, options)


def heat(title, about, unit, name, width=8):
    """How a histogram's observations spread over time."""
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "legend": {"show": True},
        "tooltip": {"mode": "single", "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "unit": unit},
    }
    expression = f"sum by (le) (increase({series(name + '_bucket')}{RATE}))"
    return panel("heatmap", title, about, "short", [(expression, "{{le}}")], width, 8, {}, options, form="heatmap")


def table(title, about, columns, width=24):
    """One row a method; `columns` are heading, unit and expression."""
    made = panel(
        "table", title, about, "short", [(expression, "") for _, _, expression in columns], width, 10, {},
        {"showHeader": True, "sortBy": [{"desc": True, "displayName": columns[0][0]}]}, instant=True, form="table",
    )
    letters = [target["refId"] for target in made["targets"]]
    names = {f"Value #{letter}": heading for letter, (heading, _, _) in zip(letters, columns)}
    names |= {"grpc_service": "Service", "grpc_method": "Method"}
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": names}},
    ]
    made["fieldConfig"]["overrides"] = [
        {"matcher": {"id": "byName", "options": heading}, "properties": [{"id": "unit", "value": unit}]}
        for heading, unit, _ in columns
    ]
    return made


def states(title, about, expression, legend, mappings, width=8):
    """What something was, over time."""
    shown = [
        {"type": "value", "options": {value: {"text": text, "color": color, "index": at}}}
        for at, (value, text, color) in enumerate(mappings)
    ]
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
        "mergeValues": True,
        "rowHeight": 0.9,
        "showValue": "never",
        "tooltip": {"mode": "single"},
    }
    defaults = {"color": {"mode": "thresholds"}, "custom": {"fillOpacity": 80}, "mappings": shown}
    return panel("state-timeline", title, about, "none", [(expression, legend)], width, 8, defaults, options)


def alerts(title, about, width=12):
    """The alerts that fire or wait."""
    options = {
        "alertName": "Weir",
        "dashboardAlerts": False,
        "groupMode": "default",
        "maxItems": 20,
        "sortOrder": 1,
        "stateFilter": {"error": True, "firing": True, "noData": False, "normal": False, "pending": True},
        "viewMode": "list",
    }
    return panel("alertlist", title, about, "none", [], width, 8, {}, options)


def row(title):
    return {"collapsed": False, "gridPos": {"w": 24, "h": 1}, "panels": [], "title": title, "type": "row"}


def placed(panels):
    """The panels with their numbers and places: left to right, a new line where one does not fit."""
    x = y = tall = 0
    for number, made in enumerate(panels, 1):
        made["id"] = number
        place = made["gridPos"]
        if x + place["w"] > 24:
            x, y, tall = 0, y + tall, 0
        place["x"], place["y"] = x, y
        x, tall = x + place["w"], max(tall, place["h"])
    return panels


# ---- dashboards -----------------------------------------------------------------------------------------------------

def query_variable(name, label, query):
    return {
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "datasource": SOURCE,
        "definition": query,
        "includeAll": True,
        "label": label,
        "multi": True,
        "name": name,
        "query": {"qryType": 1, "query": query, "refId": "Variables"},
        "refresh": 2,
        "sort": 1,
        "type": "query",
    }


VARIABLES = [
    {
        "current": {"text": "Prometheus", "value": "prometheus"},
        "label": "Data source",
        "name": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "type": "datasource",
    },
    query_variable("job", "Job", "label_values(weir_build_info, job)"),
    query_variable("instance", "Instance", 'label_values(weir_build_info{job=~"$job"}, instance)'),
]


def annotation(name, color, expression, title):
    return {
        "datasource": SOURCE,
        "enable": True,
        "expr": expression,
        "iconColor": color,
        "name": name,
        "step": "30s",
        "titleFormat": title,
        "useValueForTime": False,
    }


ANNOTATIONS = [
    annotation("Starts", "blue", f"changes({series('process_start_time_seconds')}[1m]) > 0", "{{instance}} started"),
    annotation("Drains", "orange", f"{series('weir_draining')} == 1", "{{instance}} drains"),
]


def dashboard(uid, title, about, panels):
    return {
        "annotations": {"list": ANNOTATIONS},
        "description": about,
        "editable": False,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "id": None,
        "links": [
            {
                "asDropdown": False,
                "icon": "external link",
                "includeVars": True,
                "keepTime": True,
                "tags": ["weir"],
                "title": "Weir",
                "type": "dashboards",
            }
        ],
        "panels": placed(panels),
        "refresh": "10s",
        "schemaVersion": 41,
        "tags": ["weir"],
        "templating": {"list": VARIABLES},
        "time": {"from": "now-30m", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "title": title,
        "uid": uid,
        "version": 1,
    }


# From a curve of one method to its traces at that time.
TRACES = {
    "title": "Traces of this method",
    "url": "/explore?schemaVersion=1&panes="
    '{"w":{"datasource":"traces","queries":[{"refId":"A","queryType":"search","service":"weir",'
    '"operation":"${__field.labels.grpc_service}/${__field.labels.grpc_method}"}],'
    '"range":{"from":"${__from}","to":"${__to}"}}}',
}

GOOD_FROM = steps(("red", None), ("orange", 0.99), ("green", 0.999))
BAD_FROM = steps(("green", None), ("orange", 0.001), ("red", 0.01))
METHOD = ("grpc_service", "grpc_method")
UNARY = 'grpc_type="unary"'
STREAMING = 'grpc_type!="unary"'
LEGEND = "{{grpc_service}}/{{grpc_method}}"


def fault_share(by=()):
    """The share of unary calls that the service failed."""
    good = total(rate("grpc_server_handled_total", UNARY, OWN, f'grpc_code!~"{FAULTS}"'), *by)
    return f"1 - {good} / {total(rate('grpc_server_handled_total', UNARY, OWN), *by)}"


def overview():
    handled, started = "grpc_server_handled_total", "grpc_server_started_total"
    return [
        stat("Instances", "Instances that answer a scrape.", "none", f"count({series('weir_build_info')})"),
        stat("Canary", "Worst instance: 1 while its published canary record is delivered in time.", "none",
             f"min({series('weir_canary_up')})", steps(("red", None), ("green", 1))),
        stat("Open streams", "Streaming RPCs open now, everywhere.", "none", total(series("weir_streams_active"))),
        stat("Calls", "RPCs started a second, unary and streaming.", "reqps", total(rate(started)), decimals=1),
        stat("Failed calls", "Share of unary calls that the service failed; a client's mistakes do not count.",
             "percentunit", fault_share(), BAD_FROM, decimals=3),
        stat("Delivery p99", "Append to hand-over to the reader's connection, 99 of 100 live deliveries.", "s",
             quantile(0.99, "weir_delivery_latency_seconds")),
        row("Rate, errors, duration by method"),
        graph("Calls by method", "RPCs started a second, unary and streaming.", "reqps",
              (total(rate(started, OWN), *METHOD), LEGEND)),
        graph("Calls not OK", "RPCs that ended with a code other than OK, a second, by method and code: clients' mistakes "
              "(InvalidArgument, NotFound) and planned ends (Unavailable at a drain) as well.", "reqps",
              (total(rate(handled, 'grpc_code!="OK"'), "grpc_method", "grpc_code"), "{{grpc_method}} {{grpc_code}}")),
        graph("Unary p99 by method", "Time of 99 of 100 unary calls. Streams are on their own dashboard: their life is no "
              "latency.", "s", (quantile(0.99, "grpc_server_handling_seconds", *METHOD), LEGEND), links=[TRACES]),
        table("Methods", "Every method called in the chosen time, from first to last scrape.", [
            ("Calls/s", "reqps", total(rate(started, OWN), *METHOD)),
            ("Not OK/s", "reqps", total(rate(handled, OWN, 'grpc_code!="OK"'), *METHOD)),
            ("p50", "s", quantile(0.5, "grpc_server_handling_seconds", *METHOD)),
            ("p99", "s", quantile(0.99, "grpc_server_handling_seconds", *METHOD)),
            ("In/s", "cps", total(rate("grpc_server_msg_received_total", OWN), *METHOD)),
            ("Out/s", "cps", total(rate("grpc_server_msg_sent_total", OWN), *METHOD)),
        ]),
        row("Messages and alerts"),
        graph("Messages", "Messages received from clients and sent to them, a second.", "cps",
              (total(rate("grpc_server_msg_received_total")), "received"),
              (total(rate("grpc_server_msg_sent_total")), "sent"), width=12),
        alerts("Alerts", "Alerts of Weir that fire or are pending; docs/runbook.md says what to do."),
    ]


def streams():
    active = total(series("weir_streams_active"), "instance")
    return [
        row("Open streams"),
        graph("Open by instance", "Streaming RPCs open now. Instances should come near each other within one stream age.",
              "none", (active, "{{instance}}"), stacked=True),
        graph("Open by method", "Streaming RPCs open now.", "none",
              (total(series("weir_streams_active"), *METHOD), LEGEND), stacked=True),
        graph("Imbalance", "The fullest instance by the mean: 1 is even.", "none",
              (f"max({active}) / avg({active})", "fullest / mean")),
        graph("Opened", "Streams started a second, by method.", "cps",
              (total(rate("grpc_server_started_total", STREAMING), *METHOD), LEGEND)),
        graph("Ended by reason", "complete, client_cancel, deadline and refused are clients' doing; drain and max_age are "
              "planned; overload and error are the service's.", "cps",
              (total(rate("weir_streams_ended_total"), "reason"), "{{reason}}")),
        heat("Life", "How long the streams had lived that ended.", "s", "weir_stream_duration_seconds"),
        row("Delivery"),
        graph("Delivery latency", "From append to handing the record to the reader's connection; one of sixteen live "
              "deliveries is measured.", "s", *quantiles("weir_delivery_latency_seconds", 0.5, 0.99, 0.999)),
        heat("Delivery latency, all", "How deliveries spread.", "s", "weir_delivery_latency_seconds"),
        graph("First message", "From a stream's start to its first message.", "s",
              *quantiles("weir_stream_first_message_seconds", 0.5, 0.99)),
        row("Readers"),
        graph("Send wait", "How long a stream with something to send waited for its reader: slow readers, slow networks.",
              "s", *quantiles("weir_send_wait_seconds", 0.5, 0.99)),
        graph("Tail and log readers", "Subscriptions served from memory (tail) and those catching up from the log.", "none",
              (total(series("weir_subscribers"), "source"), "{{source}}"), stacked=True),
        graph("Lag of log readers", "Records, of any topic, that a catching-up subscription was behind when it read a page.",
              "none", *quantiles("weir_subscriber_lag_records", 0.5, 0.99)),
        graph("Tails", "Topics with a tail in memory.", "none", (total(series("weir_tails"), "instance"), "{{instance}}")),
        graph("Bytes in tails", "Records held in tails for live readers; bounded by hub.total.", "bytes",
              (total(series("weir_tail_bytes"), "instance"), "{{instance}}")),
        graph("Members", "Members of all rooms, each user once in each room, as each instance knows them.", "none",
              (total(series("weir_members"), "instance"), "{{instance}}")),
        graph("Dropped points", "Points of the own topics metrics, events and logs that were dropped, a second.", "cps",
              (total(rate("weir_feed_dropped_total"), "feed"), "{{feed}}")),
        graph("Refused samples", "Samples of clients' telemetry that were refused, a second, by reason.", "cps",
              (total(rate("weir_collect_rejected_total"), "reason"), "{{reason}}")),
        graph("Dropped signals", "Signals (typing and the like, never stored) that a slow listener lost, a second.", "cps",
              (total(rate("weir_signals_dropped_total"), "signal"), "{{signal}}")),
    ]


def log():
    return [
        row("Appending"),
        graph("Records appended", "Records made durable a second, by space.", "cps",
              (total(rate("weir_appended_records_total"), "space"), "{{space}}"), stacked=True),
        graph("Bytes appended", "Payload and key bytes made durable a second, by space.", "Bps",
              (total(rate("weir_appended_bytes_total"), "space"), "{{space}}"), stacked=True),
        graph("Append latency", "From enqueueing a batch to its durability.", "s",
              *quantiles("weir_append_seconds", 0.5, 0.99, 0.999)),
        graph("Commit latency", "One group commit: write and flush.", "s",
              *quantiles("weir_fsync_seconds", 0.5, 0.99, 0.999)),
        graph("Commits", "Group commits a second, by instance.", "cps",
              (total(rate("weir_fsync_seconds_count"), "instance"), "{{instance}}")),
        graph("Records a commit", "How many records one commit makes durable; more means less cost for each.", "none",
              (mean("weir_commit_records"), "mean"), *quantiles("weir_commit_records", 0.99)),
        row("Storage"),
        graph("Size", "Bytes the log takes on its storage; measured when retention runs.", "bytes",
              (total(series("weir_log_bytes"), "instance"), "{{instance}}")),
        graph("Free", "Bytes free on the disk of the log; 0 where the log is on no disk of the instance.", "bytes",
              (total(series("weir_log_free_bytes"), "instance"), "{{instance}}")),
        graph("Trimmed", "Records dropped by retention a second, by space.", "cps",
              (total(rate("weir_trimmed_records_total"), "space"), "{{space}}"), stacked=True),
        row("Health"),
        states("Log", "Whether the log takes appends: the state full, unavailable, failed or closed refuses them.",
               f"max by (instance, state) ({series('weir_log_health')})", "{{instance}} {{state}}",
               [("0", "no", "transparent"), ("1", "yes", "blue")]),
        graph("Canary", "From publishing the canary's record to its delivery.", "s",
              *quantiles("weir_canary_seconds", 0.5, 0.99)),
        graph("Repeated appends", "Appends answered with an earlier record because of their idempotency key, a second.",
              "cps",
              (total(rate("weir_deduplicated_total")), "repeated")),
    ]


def file_transfers():
    moves = 'grpc_method=~"UploadFile|DownloadFile"'

    def moved(direction):
        return total(rate("weir_file_bytes_total", f'direction="{direction}"'))

    return [
        stat("Stored", "Bytes of all stored files; the largest that an instance counts.", "bytes",
             f"max({series('weir_files_bytes')})", width=6),
        stat("Uploads under way", "Uploads that are written now or wait to go on.", "none",
             total(series("weir_uploads_under_way")), width=6),
        stat("Coming in", "Content received a second.", "Bps", moved("up"), width=6),
        stat("Going out", "Content sent a second.", "Bps", moved("down"), width=6),
        row("Transfers"),
        graph("Content", "Bytes of files received (up) and sent (down) a second.", "Bps",
              (total(rate("weir_file_bytes_total"), "direction"), "{{direction}}")),
        graph("Streams of files", "Uploads and downloads open now by gRPC; downloads by HTTP are not among them.", "none",
              (total(series("weir_streams_active", moves), *METHOD), LEGEND)),
        graph("Ended uploads", "Streams of uploads ended a second: stored, broken (may go on), superseded (went on), "
              "refused, failed; expired are broken ones that were swept.", "cps",
              (total(rate("weir_uploads_ended_total"), "outcome"), "{{outcome}}")),
        row("Storage and calls"),
        graph("Stored by instance", "Bytes of all files, as each instance counts them; files.max_total bounds it.", "bytes",
              (total(series("weir_files_bytes"), "instance"), "{{instance}}")),
        graph("Waiting and written uploads", "Bounded by files.max_uploads; broken ones wait for files.upload_ttl.", "none",
              (total(series("weir_uploads_under_way"), "instance"), "{{instance}}")),
        graph("Calls", "Calls that look for files, list and delete them, a second.", "reqps",
              (total(rate("grpc_server_started_total", 'grpc_service="weir.v1.Files"'), "grpc_method"), "{{grpc_method}}")),
    ]


def rollout():
    ended = "weir_streams_ended_total"
    return [
        stat("Draining", "Instances that drain now.", "none", total(series("weir_draining")),
             steps(("green", None), ("orange", 1))),
        stat("Versions", "Different versions that run now; more than one during a rollout.", "none",
             f"count(count by (version) ({series('weir_build_info')}))", steps(("green", None), ("orange", 2))),
        stat("Youngest", "Time since the last start of an instance.", "s",
             f"min(time() - {series('process_start_time_seconds')})"),
        stat("Slowest recovery", "Longest time from a process's start to ready.", "s",
             f"max({series('weir_recovery_seconds')})"),
        stat("Streams to move", "Streams open on instances that drain.", "none",
             f"sum({series('weir_streams_active')} * on (job, instance) group_left () {series('weir_draining')})"),
        stat("Connections", "Connections open now.", "none", total(series("weir_connections_active"))),
        row("Draining"),
        states("Draining instances", "When each instance drained.", f"max by (instance) ({series('weir_draining')})",
               "{{instance}}", [("0", "serving", "green"), ("1", "draining", "orange")]),
        graph("Planned ends", "Streams ended by a drain or their age, a second; a drain is a plateau, no spike.", "cps",
              (total(rate(ended, 'reason=~"drain|max_age"'), "reason"), "{{reason}}")),
        graph("Streams opened", "Streams started a second, by instance: where those that were ended went.", "cps",
              (total(rate("grpc_server_started_total", STREAMING), "instance"), "{{instance}}")),
        row("Instances"),
        graph("Streams by instance", "Streaming RPCs open now.", "none",
              (total(series("weir_streams_active"), "instance"), "{{instance}}")),
        graph("Connections by instance", "Connections open now.", "none",
              (total(series("weir_connections_active"), "instance"), "{{instance}}")),
        graph("Closed connections", "Connections the server closed, a second: over the limit, never spoke, spoke garbage.",
              "cps", (total(rate("weir_connections_refused_total"), "reason"), "{{reason}}")),
        graph("Instances by version", "How a rollout goes on.", "none",
              (f"count by (version) ({series('weir_build_info')})", "{{version}}"), stacked=True, width=12),
        graph("Uptime", "Time since each process started.", "s",
              (f"time() - {series('process_start_time_seconds')}", "{{instance}}"), width=12),
    ]


def runtime():
    each = "{{instance}}"
    memory, limit = series("process_resident_memory_bytes"), series("weir_memory_limit_bytes")
    return [
        row("Process"),
        graph("CPU", "Cores in use.", "none", (rate("process_cpu_seconds_total"), each)),
        graph("CPU throttling", "Share of the time that a CPU quota kept the process from running; 0 without a quota.",
              "percentunit", (rate("weir_cpu_throttled_seconds_total"), each)),
        graph("Memory", "Resident memory.", "bytes", (memory, each)),
        graph("Memory of the limit", "Resident memory by the container's limit, else by the machine's memory.",
              "percentunit",
              (f"{memory} / {limit}", each), soft_max=1),
        graph("Open files", "File descriptors open, connections among them.", "none", (series("process_open_fds"), each)),
        graph("Open files of the limit", "File descriptors open by those that may be.", "percentunit",
              (f"{series('process_open_fds')} / {series('process_max_fds')}", each), soft_max=1),
        row("Async runtime"),
        graph("Busy workers", "Share of the time that the runtime's workers were busy; near 1 everything waits.",
              "percentunit",
              (f"{rate('weir_runtime_busy_seconds_total')} / {series('weir_runtime_workers')}", each), soft_max=1),
        graph("Waiting tasks", "Tasks in the runtime's global queue.", "none",
              (series("weir_runtime_global_queue_depth"), each)),
        graph("Tasks", "Tasks alive; about one a connection.", "none", (series("weir_runtime_alive_tasks"), each)),
        graph("Threads", "Threads of the process: workers, blocking work, the log's own.", "none",
              (series("process_threads"), each)),
        graph("Virtual memory", "Address space; says little by itself.", "bytes",
              (series("process_virtual_memory_bytes"), each)),
        graph("Worker threads", "Workers of the async runtime.", "none", (series("weir_runtime_workers"), each)),
    ]


WINDOWS = ["5m", "30m", "1h", "2h", "6h", "1d", "3d"]
OBJECTIVE = 0.999


def slo():
    def ratio(kind, window):
        return f'max(job:weir_{kind}_errors:ratio_rate{window}{{job=~"$job"}})'

    def budget(kind):
        return f"1 - {ratio(kind, '30d')} / (1 - {OBJECTIVE})"

    def burn(kind, *windows):
        return [(f"{ratio(kind, window)} / (1 - {OBJECTIVE})", window) for window in windows]

    left = steps(("red", None), ("orange", 0.25), ("green", 0.5))
    within = total(rate("weir_delivery_latency_seconds_bucket", 'le="0.1"'))
    share = f"{within} / {total(rate('weir_delivery_latency_seconds_count'))}"
    return [
        stat("Unary budget left", "Of the errors that 99.9 % over 30 days allows, the share not spent.", "percentunit",
             budget("unary"), left, decimals=1, width=6),
        stat("Stream budget left", "The same for streams: those that ended by overload or an error of the service.",
             "percentunit", budget("stream"), left, decimals=1, width=6),
        stat("Unary calls that worked", "Share in the last hour.", "percentunit", f"1 - {ratio('unary', '1h')}", GOOD_FROM,
             decimals=3, width=6),
        stat("Streams that worked", "Share in the last hour of those that ended.", "percentunit",
             f"1 - {ratio('stream', '1h')}", GOOD_FROM, decimals=3, width=6),
        row("Burn rate: 1 spends the budget in exactly 30 days"),
        graph("Unary, fast windows", "Pages at 14.4 over 1 h and 5 m, and at 6 over 6 h and 30 m.", "none",
              *burn("unary", "5m", "30m", "1h", "6h"), width=12),
        graph("Stream, fast windows", "Pages at 14.4 over 1 h and 5 m, and at 6 over 6 h and 30 m.", "none",
              *burn("stream", "5m", "30m", "1h", "6h"), width=12),
        graph("Unary, slow windows", "Warns at 3 over 1 d and 2 h, and at 1 over 3 d and 6 h.", "none",
              *burn("unary", "2h", "6h", "1d", "3d"), width=12),
        graph("Stream, slow windows", "Warns at 3 over 1 d and 2 h, and at 1 over 3 d and 6 h.", "none",
              *burn("stream", "2h", "6h", "1d", "3d"), width=12),
        row("What spends it"),
        graph("Failed unary calls", "Share of calls that the service failed, by method.", "percentunit",
              (fault_share(METHOD), LEGEND)),
        graph("Failed streams", "Streams ended a second by overload or an error of the service.", "cps",
              (total(rate("weir_streams_ended_total", 'reason=~"error|overload"'), "reason"), "{{reason}}")),
        graph("Delivered within 100 ms", "Share of live deliveries; no objective, an early sign.", "percentunit",
              (share, "within 100 ms"), soft_max=1),
    ]


DASHBOARDS = {
    "overview": dashboard("weir-overview", "Weir / Overview", "Rate, errors and duration of every method.", overview()),
    "streams": dashboard("weir-streams", "Weir / Streams", "Open streams, deliveries and readers.", streams()),
    "log": dashboard("weir-log", "Weir / Log & storage", "What is appended, how fast it is durable, what is kept.", log()),
    "files": dashboard("weir-files", "Weir / Files", "What is uploaded, downloaded and stored.", file_transfers()),
    "rollout": dashboard("weir-rollout", "Weir / Rollout & drain", "Where streams go while instances change.", rollout()),
    "runtime": dashboard("weir-runtime", "Weir / Runtime", "Processor, memory, files and the async runtime.", runtime()),
    "slo": dashboard("weir-slo", "Weir / SLO", "99.9 % over 30 days: unary calls by code, streams by reason.", slo()),
}


def operator_rules():
    """The rules of prometheus/rules as one resource of the Prometheus operator."""
    text = """\
# Generated from prometheus/rules by scripts/generate.py.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: weir
  namespace: weir
  labels:
    app.kubernetes.io/name: weir
spec:
  groups:
"""
    for path in sorted((ROOT / "prometheus" / "rules").glob("*.yml")):
        _, groups = path.read_text(encoding="utf-8").split("\ngroups:\n")
        text += "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(keepends=True))
    return text


def files():
    """Path and text of everything that is generated."""
    yield ROOT / "k8s" / "components" / "monitoring" / "rules.yaml", operator_rules()
    for name, made in DASHBOARDS.items():
        text = json.dumps(made, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        yield ROOT / "grafana" / "dashboards" / f"{name}.json", text


def main():
    is_check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not is_check:
        sys.exit(__doc__)
    differing = []
    for path, text in files():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        differing.append(str(path.relative_to(ROOT)))
        if not is_check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in differing:
        print(f"{path} {'differs: run scripts/generate.py' if is_check else 'written'}")
    sys.exit(1 if is_check and differing else 0)


if __name__ == "__main__":
    main()
