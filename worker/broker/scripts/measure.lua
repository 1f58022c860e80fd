-- Add what a worker has counted to the queue's buckets, and keep its latest ended jobs and its record.
--
-- KEYS[1]  the queue
-- ARGV[1]  beginning of the keys of the metrics     ARGV[2]  numbers in a row of counts
-- ARGV[3]  id of the worker's process     ARGV[4]  its record ('' for none)     ARGV[5]  ms for which the record is kept
-- ARGV[6]  most ended jobs that are kept     ARGV[7]  ms for which they are kept
-- ARGV[8]  ended jobs     ARGV[9]  a list of them
-- ARGV[10]  resolutions r     ARGV[11]  tasks t
-- then r times: ms of a bucket, ms for which it is kept
-- then t times: name of the task, its counts
-- then names of tasks that have succeeded
--
-- A bucket is a hash: by task the counts of that time, by the server's clock. Counts are a row of unsigned numbers, low
-- bytes first, each in one, two or four bytes: as few as the largest needs.
local prefix, lanes = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local MOST, KEEP_SUCCESSES = 4294967295, 400 * 24 * 60 * 60 * 1000

local formats = {
    [lanes] = '<' .. string.rep('B', lanes),
    [2 * lanes] = '<' .. string.rep('H', lanes),
    [4 * lanes] = '<' .. string.rep('I4', lanes),
}

local function sum(old, new)
    local format = old and formats[#old]
    if not format then return new end  -- the first of this bucket, or of another version
    local counts, added = { struct.unpack(format, old) }, { struct.unpack(formats[#new], new) }
    local largest = 0
    for i = 1, lanes do
        local count = math.min(counts[i] + added[i], MOST)
        if count > largest then largest = count end
        counts[i] = count
    end
    local width = largest < 256 and 1 or largest < 65536 and 2 or 4
    return struct.pack(formats[width * lanes], unpack(counts, 1, lanes))
end

local resolutions, tasks, ended = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[8])
local first = 12 + 2 * resolutions
if tasks > 0 then
    local names = {}
    for i = first, first + 2 * tasks - 1, 2 do names[#names + 1] = ARGV[i] end
    for r = 12, first - 1, 2 do
        local key = prefix .. ARGV[r] .. ':' .. string.format('%.0f', math.floor(now / ARGV[r]))
        local old = redis.call('HMGET', key, unpack(names))
        local written = {}
        for n, name in ipairs(names) do
            written[#written + 1] = name
            written[#written + 1] = sum(old[n], ARGV[first + 2 * n - 1])
        end
        redis.call('HSET', key, unpack(written))
        redis.call('PEXPIRE', key, ARGV[r + 1])
    end
end

-- The lists of ended jobs are in a hash by number: what each report had. The oldest are dropped once the others have
-- enough. One list a report costs a tenth of one entry a job.
if ended > 0 then
    local key, most = prefix .. 'latest', tonumber(ARGV[6])
    local known = redis.call('HMGET', key, 'first', 'next', 'jobs')
    local oldest, next, jobs = tonumber(known[1]) or 0, tonumber(known[2]) or 0, (tonumber(known[3]) or 0) + ended
    redis.call('HSET', key, next, ARGV[8] .. ':' .. ARGV[9])
    while oldest < next do
        local count = tonumber(string.match(redis.call('HGET', key, oldest) or '', '^%d+')) or 0
        if jobs - count < most then break end
        redis.call('HDEL', key, oldest)
        oldest, jobs = oldest + 1, jobs - count
    end
    redis.call('HSET', key, 'first', oldest, 'next', next + 1, 'jobs', jobs)
    redis.call('PEXPIRE', key, ARGV[7])
end

if first + 2 * tasks <= #ARGV then
    local key = prefix .. 'succeeded'
    for i = first + 2 * tasks, #ARGV do redis.call('HSET', key, ARGV[i], string.format('%.0f', now)) end
    redis.call('PEXPIRE', key, KEEP_SUCCESSES)
end

if ARGV[4] ~= '' then
    local workers = prefix .. 'workers'
    redis.call('SET', prefix .. 'worker:' .. ARGV[3], ARGV[4], 'PX', ARGV[5])
    redis.call('ZADD', workers, string.format('%.0f', now), ARGV[3])
    redis.call('ZREMRANGEBYSCORE', workers, '-inf', string.format('%.0f', now - ARGV[5]))
    redis.call('PEXPIRE', workers, ARGV[5])
end
return 1
