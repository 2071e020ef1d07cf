#!/bin/bash
# Installs Azure's SDKs, or its command line, for the tests: into target/azure (or SEALDISK_CACHE), once.
#
# Usage: tests/vaults/azure/sdks.sh python|js|management-js|az
# Prints the directory: a virtual environment, or one with node_modules.
set -euo pipefail
cd "$(dirname "$0")"

cache=${SEALDISK_CACHE:-../../../target}/azure
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
exec 9>"$cache/.lock"
flock 9

case ${1-} in
    python)
        dir=$cache/python
        wanted=$(cat requirements.txt; python3 --version)
        ;;
    js | management-js)
        dir=$cache/$1
        package=js/package.json
        [ "$1" = js ] || package=../management/$package
        wanted=$(cat "$package"; node --version)
        ;;
    az)
        dir=$cache/az
        wanted=$(cat az.txt; python3 --version)
        ;;
    *) echo "usage: tests/vaults/azure/sdks.sh python|js|management-js|az" >&2; exit 2 ;;
esac

if [ "$(cat "$dir/.installed" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$dir"
    case $1 in
        python)
            python3 -m venv "$dir" >&2
            "$dir/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt >&2
            ;;
        az)
            python3 -m venv "$dir" >&2
            "$dir/bin/pip" install --quiet --disable-pip-version-check -r az.txt >&2
            ;;
        *js)
            mkdir "$dir"
            cp "$package" "$dir"
            npm install --prefix "$dir" --silent --no-audit --no-fund >&2
            ;;
    esac
    printf '%s' "$wanted" >"$dir/.installed"
fi
echo "$dir"
