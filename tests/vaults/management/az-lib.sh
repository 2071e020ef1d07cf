# shellcheck shell=bash
# For `source`: what scripts that run az have in common. The environment says where everything is: AZ, BASE, TENANT,
# CLIENT_ID, SECRET, AZURE_CONFIG_DIR, REQUESTS_CA_BUNDLE.

export AZURE_CORE_COLLECT_TELEMETRY=no AZURE_CORE_ONLY_SHOW_ERRORS=yes AZURE_CORE_NO_COLOR=yes

say() { echo "==> $*"; }
az() { "$AZ" "$@"; }
# The value of a JMESPath expression in what a command answers.
value() { az "${@:2}" --query "$1" -o tsv; }
# A command that has to be refused with a word in what it says.
refused() {
    local said
    if said=$("${@:2}" 2>&1); then
        echo "not refused: ${*:2}: $said" >&2
        exit 1
    fi
    grep -q "$1" <<<"$said" || { echo "${*:2} said, without '$1': $said" >&2; exit 1; }
}
is() { [ "$1" = "$2" ] || { echo "'$1' is not '$2'" >&2; exit 1; }; }
log_in() {
    az cloud register -n Sealdisk --endpoint-resource-manager "$BASE"
    az cloud set -n Sealdisk
    az login --service-principal -u "$CLIENT_ID" -p "$SECRET" --tenant "$TENANT" -o none
}
