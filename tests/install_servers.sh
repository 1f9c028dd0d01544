#!/usr/bin/env bash
# Installs from Debian's packages what the tests need and this machine lacks: make, Python's venv module, strace, Mosquitto,
# InfluxDB 1.6.7, PostgreSQL, promtool. Where Go is, it also builds InfluxDB 1.8.10 into a cache folder.
# `--peers` adds redis-server, on which the benchmark of Celery stands. Needs root. The tests start Mosquitto themselves, so the service that the package sets up is stopped and disabled.
set -euo pipefail

missing=()
command -v make >/dev/null || missing+=(make)
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
command -v strace >/dev/null || missing+=(strace)
PATH="$PATH:/usr/sbin" command -v mosquitto >/dev/null || missing+=(mosquitto)
command -v influxd >/dev/null || missing+=(influxdb)
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
if [[ "${1:-}" == --peers ]]; then
    command -v redis-server >/dev/null || missing+=(redis-server)
fi

# Only the checking tool is wanted of Prometheus, so its package is unpacked and not installed, which would start it.
install_promtool() {
    local folder
    folder=$(mktemp --directory)
    (cd "$folder" && apt-get download -qq -o APT::Sandbox::User=root prometheus && dpkg-deb --fsys-tarfile ./*.deb | tar --extract ./usr/bin/promtool)
    install "$folder/usr/bin/promtool" /usr/local/bin/promtool
    rm --recursive "$folder"
}
promtool_missing=0
command -v promtool >/dev/null || promtool_missing=1

cache="${XDG_CACHE_HOME:-$HOME/.cache}/idlewheel"
if command -v go >/dev/null && [[ ! -x "$cache/influxd-1.8.10" ]]; then
    GOBIN="$cache/build" go install github.com/influxdata/influxdb/cmd/influxd@v1.8.10
    mv "$cache/build/influxd" "$cache/influxd-1.8.10"
    rmdir "$cache/build"
fi

if ((${#missing[@]} == 0 && !promtool_missing)); then
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
if [[ " ${missing[*]} " == *" influxdb "* && ! -e /usr/sbin/policy-rc.d ]]; then
    # Its service would listen on every address: it must not start, not even for the moment until it is stopped below.
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
fi
if [[ " ${missing[*]} " == *" postgresql "* && ! -e /etc/postgresql-common/createcluster.conf ]]; then
    # The tests make servers of their own: Debian's need not even be there.
    mkdir --parents /etc/postgresql-common
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
    export UCF_FORCE_CONFFOLD=1
fi
apt-get update -qq
((!promtool_missing)) || install_promtool
((${#missing[@]})) || exit 0
apt-get install -qq --yes --no-install-recommends "${missing[@]}" >/dev/null

# A server that was here before is somebody's, and stays as it is.
for server in mosquitto redis-server influxdb postgresql; do
    [[ " ${missing[*]} " == *" $server "* ]] || continue
    if [[ -d /run/systemd/system ]]; then
        systemctl disable --now --quiet "$server"
    else
        service "$server" stop >/dev/null || true
        update-rc.d "$server" disable
    fi
done
