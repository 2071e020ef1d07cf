#!/bin/bash
# A guest under load that libvirt runs, as its own user, on a disk of `sealdisk attach`: with the domain of
# docs/howto/libvirt.md through define, start, suspend, resume, hot-plug, deaths and upgrades of the back-end,
# save, restore, reboot, reset and shutdown. Uses the libvirtd that is there, else starts one and ends it.
#
# Usage: libvirt.sh SEALDISK
# shellcheck source=tests/vm/images/lib.sh
. "$(dirname "$0")/images/lib.sh"

[ $# = 1 ] || fail "usage: libvirt.sh SEALDISK"
[ "$(id -u)" = 0 ] || fail "needs root, as a system's libvirtd does"
PATH=$(dirname "$(realpath "$1")"):$PATH
export LIBVIRT_DEFAULT_URI=qemu:///system
for program in virsh libvirtd virtlogd; do
    command -v "$program" >/dev/null || fail "$program is missing: scripts/setup full"
done

# Ends hangs and measures nothing: emulated guests on a busy machine are slow.
PATIENCE=300
domain=sealdisk-test-$$
scratch=$(mktemp -d -p /var/tmp sealdisk-libvirt.XXXXXX)
runtime=$(mktemp -d -p /dev/shm sealdisk-libvirt.XXXXXX)
chmod 711 "$scratch" "$runtime" # QEMU's user passes through
export SEALDISK_STATE_DIR=$scratch/state SEALDISK_RUNTIME_DIR=$runtime
console=$scratch/console
started=() # processes of ours that may still run

clean_up() {
    local status=$? process
    if [ "$status" != 0 ]; then
        { echo "--- console"; tail -n 40 "$console"; echo "--- attach"; tail -n 40 "$scratch"/*.log
            echo "--- QEMU"; tail -n 5 "/var/log/libvirt/qemu/$domain.log"; } >&2 2>/dev/null || true
    fi
    virsh destroy "$domain" >/dev/null 2>&1 || true
    virsh undefine "$domain" >/dev/null 2>&1 || true
    for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
    for process in "${started[@]}"; do wait "$process" 2>/dev/null || true; done
    rm -rf "$scratch" "$runtime" "/var/log/libvirt/qemu/$domain.log"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

step() { echo "ok $SECONDS s: $*"; }

# within WHAT COMMAND...: waits until COMMAND succeeds.
within() {
    local what=$1 end=$((SECONDS + PATIENCE))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || fail "not in $PATIENCE s: $what"
        sleep 0.1
    done
}

# Of libvirt's commands none may take for ever: with <reconnect> QEMU waits for a back-end that is not there.
virsh() { timeout "$PATIENCE" virsh --quiet "$@"; }

libvirt_answers() { virsh version; }

start_libvirt() {
    local daemon
    if timeout 5 virsh --quiet version >/dev/null 2>&1; then return; fi
    for daemon in virtlogd libvirtd; do
        "$daemon" >"$scratch/$daemon.log" 2>&1 &
        started+=($!)
    done
    within "libvirtd answers" libvirt_answers
}

# attach DISK: serves it at $runtime/DISK.sock; its process is in attached[DISK].
declare -A attached
attach() {
    sealdisk attach "$1" --socket-path "$runtime/$1.sock" --socket-group libvirt-qemu >>"$scratch/$1.log" 2>&1 &
    attached[$1]=$!
    started+=($!)
}

# A disk of libvirt: its socket and its place, as in docs/howto/libvirt.md.
disk_xml() {
    cat <<XML
<disk type='vhostuser' device='disk'>
  <driver name='qemu' type='raw' queues='2'/>
  <source type='unix' path='$runtime/$1.sock'>
    <reconnect enabled='yes' timeout='1'/>
  </source>
  <target dev='$2' bus='virtio'/>
</disk>
XML
}

domain_xml() {
    local confined=''
    # Where AppArmor confines guests, a rule for these directories would be needed: see docs/howto/libvirt.md.
    if grep -qx Y /sys/module/apparmor/parameters/enabled 2>/dev/null; then
        confined="<seclabel type='none' model='apparmor'/>"
    fi
    cat <<XML
<domain type='qemu'>
  <name>$domain</name>
  <memory unit='MiB'>512</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>$scratch/vmlinuz</kernel>
    <initrd>$scratch/initrd</initrd>
    <cmdline>console=ttyS0 quiet loglevel=3 panic=-1 cryptomgr.notests</cmdline>
  </os>
  <sysinfo type='fwcfg'><entry name='opt/sealdisk/job' file='$scratch/job'/></sysinfo>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <memoryBacking>
    <source type='memfd'/>
    <access mode='shared'/>
  </memoryBacking>
  <devices>
    $(disk_xml web vda)
    <serial type='file'><source path='$console' append='on'/></serial>
  </devices>
  $confined
</domain>
XML
}

# What the guest does. The load ends when somebody presses the power button, which is what libvirt's reboot and
# shutdown do; then all that was written is verified once more, and the next boot finds what this one has left.
write_job() {
    cat >"$scratch/job" <<'JOB'
set -e
modprobe button
modprobe evdev
dmesg -c >/dev/null
echo 5 >/proc/sys/kernel/printk
[ "$(ls /sys/block/vda/mq | wc -l)" = 2 ]

# Block 30720 says how often the guest has booted and what the 4 MiB before it are.
sum() { dd if=/dev/vda bs=1M skip=116 count=4 iflag=direct 2>/dev/null | sha256sum | cut -c 1-64; }
set -- $(dd if=/dev/vda bs=4096 skip=30720 count=1 iflag=direct 2>/dev/null | tr -d '\0')
boot=$((${1:-0} + 1))
[ "$boot" = 1 ] || [ "$(sum)" = "$2" ]
dd if=/dev/urandom of=/dev/vda bs=1M seek=116 count=4 oflag=direct conv=notrunc 2>/dev/null
{ echo "$boot $(sum)"; cat /dev/zero; } | dd of=/dev/vda bs=4096 seek=30720 count=1 iflag=fullblock conv=notrunc,fsync 2>/dev/null
echo "SEALDISK-BOOT $boot"

for input in /dev/input/event*; do
    { head -c 24 "$input" >/dev/null; touch /run/pressed; } &
done
while :; do
    until [ -b /dev/vdb ]; do sleep 0.2; done
    dd if=/dev/urandom of=/tmp/new bs=1M count=4 2>/dev/null
    dd if=/tmp/new of=/dev/vdb bs=1M oflag=direct conv=notrunc 2>/dev/null
    dd if=/dev/vdb bs=1M count=4 iflag=direct 2>/dev/null | cmp - /tmp/new && echo "SEALDISK-PLUGGED"
    while [ -b /dev/vdb ]; do sleep 0.2; done
    echo "SEALDISK-UNPLUGGED"
done &

n=0
until [ -e /run/pressed ]; do
    verify="--rw=randwrite --verify=crc32c --verify_fatal=1 --fsync=24 --size=4m --bssplit=512/15:4k/50:16k/20:64k/15"
    fio --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=32 --randseed=$n --exitall_on_error=1 \
        --name=first $verify --offset=0 --cpus_allowed=0 \
        --name=second $verify --offset=32m --cpus_allowed=1 \
        --name=discards --rw=trimwrite --bsrange=4k-64k --offset=64m --size=2m \
        >/tmp/said 2>&1 || { cat /tmp/said; exit 1; }
    n=$((n + 1))
    echo "SEALDISK-ROUND $n"
done
! dmesg | grep -i -e 'I/O error' -e 'not a head'
JOB
}

# says COUNT TEXT: the console has so many lines that begin with it.
says() { [ "$(grep -a -c "^$2" "$console")" -ge "$1" ]; }
has_state() { [ "$(virsh domstate "$domain")" = "$1" ]; }
exits=0 # so often the job has ended, and was to

# The guest has written and verified anew: what was in flight when something happened is behind it.
rounds() { grep -a -c '^SEALDISK-ROUND' "$console" || true; }
unharmed() {
    local sign
    for sign in 'I/O error' 'not a head'; do
        ! grep -a -q "$sign" "$console" || fail "the guest was harmed: $sign"
    done
    ! says $((exits + 1)) SEALDISK-EXIT || fail "the guest's job ended"
}
more_rounds() { unharmed && [ "$(rounds)" -ge "$wanted" ]; }
goes_on() {
    local wanted=$(($(rounds) + 2))
    within "the guest goes on after: $1" more_rounds
    unharmed
    step "$1"
}

data_plane() { pgrep -P "$(pgrep -P "${attached[web]}" | head -n 1)" | head -n 1; }
restarts() { sealdisk disk show web -o json | sed -n 's/.*"restarts": *\([0-9]*\).*/\1/p'; }
restarted() { [ "$(restarts)" -gt "$before" ]; }

start_libvirt
{ read -r kernel; read -r initrd; } < <("$IMAGES/initramfs.sh" --fio)
# libvirt gives them to QEMU's user while the guest runs: the cached ones stay whose they are.
cp "$kernel" "$scratch/vmlinuz"
cp "$initrd" "$scratch/initrd"
write_job
domain_xml >"$scratch/domain.xml"
disk_xml data vdb >"$scratch/data.xml"
sealdisk disk create web --size 128MiB >/dev/null 2>&1
sealdisk disk create data --size 16MiB >/dev/null 2>&1
attach web
attach data

virsh define "$scratch/domain.xml" --validate
virsh start "$domain"
within "the guest boots" says 1 'SEALDISK-BOOT 1'
process=$(pgrep -f "guest=$domain," | head -n 1)
[ "$(stat -c %U "/proc/$process")" = libvirt-qemu ] || fail "QEMU runs as $(stat -c %U "/proc/$process")"
goes_on "define and start"

virsh suspend "$domain"
has_state paused || fail "it was not suspended"
virsh resume "$domain"
goes_on "suspend and resume"

for time in 1 2; do
    virsh attach-device "$domain" "$scratch/data.xml" --live
    within "the new disk works" says "$time" SEALDISK-PLUGGED
    virsh detach-device "$domain" "$scratch/data.xml" --live
    within "the new disk goes" says "$time" SEALDISK-UNPLUGGED
done
goes_on "hot-plug and unplug, twice"

for time in 1 2 3; do
    before=$(restarts)
    kill -KILL "$(data_plane)"
    within "the data plane is replaced" restarted
    goes_on "kill -9 of the data plane"
done
for time in 1 2; do
    kill -KILL "${attached[web]}"
    wait "${attached[web]}" 2>/dev/null || true
    sleep "0.$time"
    attach web
    goes_on "kill -9 of attach, which is started again"
done
kill -TERM "${attached[web]}"
wait "${attached[web]}" || fail "attach ended with $?"
attach web
goes_on "stop of attach, which is started again"
for time in 1 2; do
    sealdisk upgrade web >/dev/null
    goes_on "sealdisk upgrade"
done

virsh save "$domain" "$scratch/saved"
virsh restore "$scratch/saved"
goes_on "save and restore"

# The power button, and libvirt starts the guest anew when it has powered itself off.
virsh reboot "$domain" --mode acpi
within "the guest reboots" says 1 'SEALDISK-BOOT 2'
says 1 'SEALDISK-EXIT 0' || fail "the load did not end well"
exits=1
goes_on "reboot"
virsh reset "$domain"
within "the guest is reset" says 1 'SEALDISK-BOOT 3'
goes_on "reset"

virsh shutdown "$domain" --mode acpi
within "the guest shuts down" has_state 'shut off'
says 2 'SEALDISK-EXIT 0' || fail "the load did not end well"
virsh undefine "$domain"
for disk in web data; do
    kill -TERM "${attached[$disk]}"
    wait "${attached[$disk]}" || fail "attach of $disk ended with $?"
    sealdisk disk check "$disk" >/dev/null
done
step "shutdown"
echo "all passed"
