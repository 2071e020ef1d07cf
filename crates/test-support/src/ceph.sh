# A Ceph cluster on this host for tests: one monitor, one manager, one OSD, on the loopback device alone.
# Usage: bash ceph.sh DIRECTORY PORT; the pids of its processes are in DIRECTORY/pids, the OSD's in DIRECTORY/osd.pid.
# SEALDISK_TEST_CEPH_OPTIONS are lines for its configuration.
set -euo pipefail
dir=$1 port=$2
cd "$dir"
mkdir mon mgr osd log run
: >pids
cat >ceph.conf <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$port,v1:127.0.0.1:$((port + 1))]
mon initial members = a
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
keyring = $dir/keyring
run dir = $dir/run
crash dir = $dir/run
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail warn = 2
mon data avail crit = 1
auth allow insecure global id reclaim = false
setuser match path = /
${SEALDISK_TEST_CEPH_OPTIONS-}
[mon]
log file = $dir/log/\$name.log
admin socket = $dir/run/\$name.asok
mon data = $dir/mon/ceph-\$id
[mgr]
log file = $dir/log/\$name.log
admin socket = $dir/run/\$name.asok
mgr data = $dir/mgr/ceph-\$id
mgr initial modules =
[osd]
log file = $dir/log/\$name.log
admin socket = $dir/run/\$name.asok
osd data = $dir/osd/ceph-\$id
osd objectstore = bluestore
bluestore block create = true
bluestore block size = $((2 << 30))
bluestore block db create = false
bluestore block wal create = false
osd memory target = 939524096
bluestore cache autotune = false
bluestore cache size = 67108864
osd op num threads per shard = 1
osd op num shards = 2
CONF
export CEPH_CONF=$dir/ceph.conf
mkdir mon/ceph-a mgr/ceph-x osd/ceph-0
key() { ceph-authtool "$@" >/dev/null; }
key --create-keyring keyring --gen-key -n mon. --cap mon 'allow *'
key keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
key keyring --gen-key -n mgr.x --cap mon 'allow profile mgr' --cap osd 'allow *' --cap mds 'allow *'
key keyring --gen-key -n osd.0 --cap mon 'allow profile osd' --cap mgr 'allow profile osd' --cap osd 'allow *'
monmaptool --create --fsid "$(sed -n 's/^fsid = //p' ceph.conf)" \
    --addv a "[v2:127.0.0.1:$port,v1:127.0.0.1:$((port + 1))]" monmap >/dev/null
ceph-mon --mkfs -i a --monmap monmap --keyring keyring
ceph-mon -i a -f >log/mon.out 2>&1 &
echo $! >>pids
timeout 60 ceph -s >/dev/null
ceph-mgr -i x -f >log/mgr.out 2>&1 &
echo $! >>pids
uuid=$(cat /proc/sys/kernel/random/uuid)
ceph osd new "$uuid" 0 >/dev/null
ceph-osd -i 0 --mkfs --osd-uuid "$uuid" >log/mkfs.out 2>&1
ceph-osd -i 0 -f >log/osd.out 2>&1 &
echo $! | tee -a pids >osd.pid
until ceph osd stat | grep -q '1 up'; do sleep 0.2; done
ceph osd pool create rbd 8 8 >/dev/null 2>&1
rbd pool init rbd
# The manager says so, later.
until ceph pg stat | grep -Eq '[1-9][0-9]* active\+clean;'; do sleep 0.2; done
