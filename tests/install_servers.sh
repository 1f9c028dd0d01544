#!/usr/bin/env bash
# Installs from Debian's packages what the tests need and this machine lacks: make, Python's venv module, Mosquitto.
# Needs root. The tests start Mosquitto themselves, so the service that the package sets up is stopped and disabled.
set -euo pipefail

missing=()
command -v make >/dev/null || missing+=(make)
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
PATH="$PATH:/usr/sbin" command -v mosquitto >/dev/null || missing+=(mosquitto)

if ((${#missing[@]} == 0)); then
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --yes --no-install-recommends "${missing[@]}" >/dev/null

# A Mosquitto that was here before is somebody's, and stays as it is.
if [[ " ${missing[*]} " == *" mosquitto "* ]]; then
    if [[ -d /run/systemd/system ]]; then
        systemctl disable --now --quiet mosquitto
    else
        service mosquitto stop >/dev/null || true
        update-rc.d mosquitto disable
    fi
fi
