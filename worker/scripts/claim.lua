-- Take up to n due jobs that nobody runs. A taken job's score moves to the end of its lease, so that it is not looked
-- at again while it runs, and is due again by itself if its worker dies.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  token     ARGV[3]  lease in ms     ARGV[4]  n
-- ARGV[5]  how many of them may be suspects: jobs whose workers have died WARY times or more
-- Returns the time, when the next job is due (or false), and for each taken job: id, payload (or false), its score,
-- failed tries, claims that were never finished, when it was asked to abort (or false).
local queue, prefix, token, lease, wanted = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local suspects = tonumber(ARGV[5])
local LOOK_AT_MOST, MOST, WARY, LATER = 1000, 1000000000, 2, 500

-- Whatever other software has put there must not stop the queue: an error of `pcall` counts as nothing there.
local function text(reply)
    return type(reply) == 'string' and reply or false
end

local function count(reply)
    local number = tonumber(text(reply) or '') or 0
    return number >= 0 and math.min(number, MOST) or 0
end

local reply, taken, looked = { now, false }, 0, 0
while taken < wanted and looked < LOOK_AT_MOST do
    local due = redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', 0, wanted - taken)
    if #due == 0 then break end
    for i = 1, #due, 2 do
        local id, score = due[i], due[i + 1]
        local holder, job = prefix .. 'in-progress:' .. id, prefix .. 'job:' .. id
        local left = redis.call('PTTL', holder)
        looked = looked + 1
        if left == -2 or redis.pcall('GET', holder) == 'ended' then  -- free, or a tombstone: see finish.lua
            -- Who claimed it last, and how often nobody finished it: outlives the lease, and goes when it is finished.
            local before = text(redis.pcall('HGET', prefix .. 'started', id))
            local crashes = before and count(string.match(before, '^%d+')) or 0
            local abort_at = text(redis.pcall('ZSCORE', prefix .. 'abort', id))
            -- A stock client's abort makes a deferred job due first, at 1, and only then says that it is to be aborted.
            local is_being_aborted = score == '1' and not abort_at
            if is_being_aborted or (crashes >= WARY and suspects <= 0) then
                redis.call('ZADD', queue, now + LATER, id)
            else
                redis.call('SET', holder, token .. ':' .. score, 'PX', lease)
                redis.call('ZADD', queue, now + lease, id)
                redis.call('PERSIST', job)  -- begun is begun: it waits no longer, so it cannot expire any more
                redis.pcall('HSET', prefix .. 'started', id, string.format('%.0f:%s', crashes + 1, token))
                if crashes >= WARY then suspects = suspects - 1 end
                taken = taken + 1
                reply[#reply + 1] = {
                    id,
                    text(redis.pcall('GET', job)),
                    score,
                    count(redis.pcall('GET', prefix .. 'retry:' .. id)),
                    crashes,
                    abort_at,
                }
            end
        else
            -- It runs: whoever lowered its score (a stock client's abort does) did not mean it to run twice.
            if left == -1 then redis.call('PEXPIRE', holder, lease) end  -- nobody's: leases end
            redis.call('ZADD', queue, now + (left == -1 and lease or math.max(left, 1)), id)
        end
    end
end
local following = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')
reply[2] = following[2] or false
return reply
