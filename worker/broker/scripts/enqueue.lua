-- Add jobs to a queue, each unless its id is taken: by a job that waits or runs, or by a kept result. The result of an
-- aborted job does not take the id.
--
-- KEYS and ARGV: see new_jobs.lua, which is put before this script
-- Returns for each job 1, or 0 if its id was taken. If ARGV[3] asks for it, then also 1, or 0 if no worker serves the
-- queue.
local added, scores = {}, {}
for i = 4, #ARGV, 3 do
    local id, payload, when = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if is_taken(id) then
        added[#added + 1] = 0
    else
        local score, expiry = times(when)
        redis.call('SET', prefix .. 'job:' .. id, payload, 'PX', expiry)
        if aborts then redis.pcall('ZREM', abort, id) end
        scores[#scores + 1] = score
        scores[#scores + 1] = id
        added[#added + 1] = 1
    end
end
if #scores > 0 then
    redis.call('ZADD', queue, unpack(scores))
    redis.call('PUBLISH', ARGV[2], '1')
end
if ARGV[3] ~= '' then added[#added + 1] = is_served() end
return added
