#!/usr/bin/env bash
# Installs from Debian's packages what the tests need and this machine lacks: make, Python's venv module, Mosquitto.
# `--peers` adds redis-server, on which the benchmark of Celery stands. Needs root. The tests start Mosquitto themselves, so the service that the package sets up is stopped and disabled.
set -euo pipefail

missing=()
command -v make >/dev/null || missing+=(make)
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
PATH="$PATH:/usr/sbin" command -v mosquitto >/dev/null || missing+=(mosquitto)
if [[ "${1:-}" == --peers ]]; then
    command -v redis-server >/dev/null || missing+=(redis-server)
fi

if ((${#missing[@]} == 0)); then
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --yes --no-install-recommends "${missing[@]}" >/dev/null

# A server that was here before is somebody's, and stays as it is.
for server in mosquitto redis-server; do
    [[ " ${missing[*]} " == *" $server "* ]] || continue
    if [[ -d /run/systemd/system ]]; then
        systemctl disable --now --quiet "$server"
    else
        service "$server" stop >/dev/null || true
        update-rc.d "$server" disable
    fi
done
