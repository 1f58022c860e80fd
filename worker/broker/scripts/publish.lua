-- Add jobs that the ledger says are to run, unless Redis has them. A job that has lost its payload, or its place in the
-- queue, gets it back. A kept result belongs to an earlier run, and is deleted.
--
-- KEYS and ARGV: see new_jobs.lua, which is put before this script
-- Returns for each job 1, or 0 if Redis had it. If ARGV[3] asks for it, then also 1, or 0 if no worker serves the
-- queue.
local published, any = {}, false
for i = 4, #ARGV, 3 do
    local id, payload, when = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local job, result = prefix .. 'job:' .. id, prefix .. 'result:' .. id
    local has_payload, place = redis.call('EXISTS', job) == 1, redis.call('ZSCORE', queue, id)
    if has_payload and place then
        published[#published + 1] = 0
    else
        local score, expiry = times(when)
        if not has_payload then redis.call('SET', job, payload, 'PX', expiry) end
        if not place then redis.call('ZADD', queue, score, id) end
        local was_aborted, was_kept = set_aside(id, result)
        if was_kept and not was_aborted then redis.call('DEL', result) end
        if aborts then redis.pcall('ZREM', abort, id) end
        if redis.pcall('GET', prefix .. 'in-progress:' .. id) == 'ended' then
            redis.call('DEL', prefix .. 'in-progress:' .. id)  -- a tombstone: see finish.lua
        end
        published[#published + 1] = 1
        any = true
    end
end
if any then redis.call('PUBLISH', ARGV[2], '1') end
if ARGV[3] ~= '' then published[#published + 1] = is_served() end
return published
