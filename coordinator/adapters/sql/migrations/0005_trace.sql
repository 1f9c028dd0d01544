-- The span under which a job was submitted, in the two headers of W3C Trace Context.

ALTER TABLE jobs ADD COLUMN traceparent TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN tracestate TEXT NOT NULL DEFAULT '';
